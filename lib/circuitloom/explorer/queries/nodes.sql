FROM circuit_nodes({study})
