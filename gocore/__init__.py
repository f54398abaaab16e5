"""The Go core: how it is built (build.py), loaded and called (binding.py). Its Go module lives in the folders beside."""
