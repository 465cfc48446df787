"""What is commonly said of batching: a file each that says it, measures it and states the bounds it is "
"judged by."""
