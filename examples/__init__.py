"""What the repo bundles to show the main job: four small trained repos, their text, and the script that
made them."""
