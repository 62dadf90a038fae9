"""Both bases read the same text; what their sites read and write there is paired and summed up."""
