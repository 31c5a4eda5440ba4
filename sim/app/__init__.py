"""The what-if page: settings on the left, what they do to a trace on the right."""
