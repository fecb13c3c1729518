"""Which labels are likely wrong, and which properties of files betray the label."""
