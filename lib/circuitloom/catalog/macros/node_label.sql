-- What a node of a circuit is, in a few words.
-- example: SELECT node_label('feature', 3, 235, NULL, 'caught', 4)
CREATE OR REPLACE MACRO node_label(kind, layer, feature, head, token, position) AS
CASE kind
    WHEN 'feature' THEN concat(layer, '/', feature, ' ''', token, '''@', position)
    WHEN 'head' THEN concat('head ', layer, '.', head, ' from ''', token, '''@', position)
    WHEN 'error' THEN concat('error ', layer, ' ''', token, '''@', position)
    WHEN 'constant' THEN 'constant'
    ELSE concat(kind, ' ''', token, '''@', position)
END;
