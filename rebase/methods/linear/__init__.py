"""SimpleLinear [002]: the linear map that best fits one base weight to the other."""
