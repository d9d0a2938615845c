"""What the users of a mount see when its servers are killed: errors, wrong bytes, and pauses."""
