"""scripts/check --coverage: lines and branches of the data plane that tests reach, and those they do not."""
