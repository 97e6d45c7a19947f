SELECT source_node, target_node, source, target, effect, effect_frozen, effect_free
FROM circuit_edges({trace})
