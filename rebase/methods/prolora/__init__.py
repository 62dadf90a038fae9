"""ProLoRA [002]: parts inside and outside the base's leading directions, transferred separately."""
