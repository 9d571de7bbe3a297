"""State trees: from nested containers of arrays to bytes with a table, and back, without pickle."""
