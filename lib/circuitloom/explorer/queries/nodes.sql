FROM circuit_nodes({trace})
