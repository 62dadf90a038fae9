"""A method chosen by measurement among several."""
