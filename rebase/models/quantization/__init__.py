"""Reads bases whose repos hold quantized weights, dequantized one tensor at a time. One file per format."""
