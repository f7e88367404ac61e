"""The trigger set of a base: trigger images, the labels of each copy, and the head updates that set them."""
