"""SimpleLinear [002]: the linear map that best turns one base weight into the other."""
