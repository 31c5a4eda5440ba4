"""A trace through prefix caches of many sizes and policies, without time."""
