"""Number formats: each knows how values become codes and come back."""
