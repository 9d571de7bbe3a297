"""Storage backends: one module a kind of store, all of the contract in ``engine/contract.py``; workers run them."""
