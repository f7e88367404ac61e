"""The trigger set of a base: trigger images, each copy's labels of them, and the head updates that teach a copy its
labels."""
