"""The dynamic cell: vocabulary, operations, supernet, static cell."""
