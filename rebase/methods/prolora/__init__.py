"""ProLoRA [002]: transfers the parts inside and outside the base's leading directions separately."""
