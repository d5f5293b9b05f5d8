"""The built-in model's second edition: more objects, styles, places, numbers and backgrounds; trained on a GPU."""
