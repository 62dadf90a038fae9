"""What a LoRA adapter is: low-rank updates, PEFT's files, tensor names and the linear algebra under them."""
