"""The items of `builtin:capability`, made by code with seeds and by hand."""
