-- name: characters
-- Splits joined tokens: each character that is written as bytes, such as ⟨E4⟩⟨B8⟩⟨AD⟩, and matches of `others` between.
-- example: SELECT characters('the ⟨E4⟩⟨B8⟩⟨AD⟩', '(?s:.)') AS parts
CREATE OR REPLACE MACRO characters(joined, others) AS
regexp_extract_all(
    joined,
    -- characters of one to four bytes, as in core/token_text.py; U+FDD0 and U+FDD1 are marks of marked_text
    concat(
        '⟨[0-7][0-9A-F]⟩|⟨(C[2-9A-F]|D[0-9A-F])⟩[\x{FDD0}\x{FDD1}]*⟨[89AB][0-9A-F]⟩|',
        '(⟨E0⟩[\x{FDD0}\x{FDD1}]*⟨[AB][0-9A-F]⟩|⟨ED⟩[\x{FDD0}\x{FDD1}]*⟨[89][0-9A-F]⟩',
        '|⟨E[1-9A-CEF]⟩[\x{FDD0}\x{FDD1}]*⟨[89AB][0-9A-F]⟩)[\x{FDD0}\x{FDD1}]*⟨[89AB][0-9A-F]⟩|',
        '(⟨F0⟩[\x{FDD0}\x{FDD1}]*⟨[9AB][0-9A-F]⟩|⟨F4⟩[\x{FDD0}\x{FDD1}]*⟨8[0-9A-F]⟩',
        '|⟨F[1-3]⟩[\x{FDD0}\x{FDD1}]*⟨[89AB][0-9A-F]⟩)[\x{FDD0}\x{FDD1}]*⟨[89AB][0-9A-F]⟩[\x{FDD0}\x{FDD1}]*⟨[89AB][0-9A-F]⟩|',
        others
    )
);

-- name: whole_text
-- Joined tokens as text: bytes such as ⟨E4⟩⟨B8⟩⟨AD⟩ that are a whole character become this character.
-- example: SELECT whole_text('the ⟨E4⟩⟨B8⟩⟨AD⟩') AS text
CREATE OR REPLACE MACRO whole_text(joined) AS
CASE
    WHEN contains(joined, '⟨') THEN array_to_string(
        list_transform(
            characters(joined, '[^⟨]+|⟨'),
            lambda part: CASE
                WHEN length(part) > 1 AND starts_with(part, '⟨') THEN concat(
                    if(contains(part, chr(64976)), chr(64976), ''),
                    decode(unhex(regexp_replace(part, '[^0-9A-F]', '', 'g'))),
                    if(contains(part, chr(64977)), chr(64977), '')
                )
                ELSE part
            END
        ),
        ''
    )
    ELSE joined
END;

-- name: tokens_in_text
-- Tokens of all sequences that match a regular expression, with the sequence's text and the place where a token ends in it.
-- example: SELECT sequence, position, token, stop FROM tokens_in_text($pattern) ORDER BY sequence, position LIMIT 3
CREATE OR REPLACE MACRO tokens_in_text(pattern) AS TABLE
WITH
joined_tokens AS (
    SELECT sequence, string_agg(token, spacing() ORDER BY position) AS joined
    FROM token
    GROUP BY sequence
),

matching AS (
    SELECT sequence, joined, whole_text(joined) AS text
    FROM joined_tokens
    -- a sequence without a match has none up to any token either, except for patterns that test for the text's end
    WHERE regexp_matches(pattern, '[$]|\\[bBz]') OR regexp_matches(whole_text(joined), pattern)
),

parts AS (
    SELECT sequence, unnest(found) AS part, generate_subscripts(found, 1) AS number
    FROM (
        SELECT sequence, characters(joined, '[^⟨]+|⟨') AS found
        FROM matching
        WHERE contains(joined, '⟨')
    )
),

spans AS (
    SELECT
        sequence,
        starts_with(part, '⟨') AND length(part) > 1 AS is_character,
        length(part) AS n_letters,
        -- letters of the joined tokens, and characters of the text, before the part
        (sum(n_letters) OVER before_part)::BIGINT - n_letters AS start,
        (sum(if(is_character, 1, n_letters)) OVER before_part)::BIGINT - if(is_character, 1, n_letters) AS start_in_text
    FROM parts
    WINDOW before_part AS (PARTITION BY sequence ORDER BY number)
),

ending AS (
    SELECT
        token.*,
        matching.text,
        (sum(length(token) + length(spacing())) OVER (PARTITION BY sequence ORDER BY position))::BIGINT
        - length(spacing()) AS letters
    FROM token
    JOIN matching USING (sequence)
)

SELECT
    ending.* EXCLUDE (letters),
    CASE
        WHEN spans.start IS NULL THEN letters
        -- a character counts from the token that completes it
        WHEN is_character THEN start_in_text + (letters >= start + n_letters)::BIGINT
        ELSE start_in_text + letters - start
    END AS stop
FROM ending
ASOF LEFT JOIN spans ON ending.sequence = spans.sequence AND ending.letters >= spans.start;

-- name: tokens_matching
-- Tokens at which a match of a regular expression ends. A match lies in one sequence and has at most 100 characters.
-- example: SELECT sequence, position, token FROM tokens_matching($pattern) LIMIT 3
CREATE OR REPLACE MACRO tokens_matching(pattern) AS TABLE
WITH ending AS (
    SELECT *, lag(stop, 1, 0) OVER (PARTITION BY sequence ORDER BY position) AS previous
    FROM tokens_in_text(pattern)
)

SELECT sequence, position, document, token_id, token
FROM ending
WHERE
    -- bytes that complete no character add nothing to the text
    NOT (stop = previous AND contains(token, '⟨'))
    AND CASE
        WHEN stop <= 100 THEN regexp_matches(substring(text, 1, stop), '(' || pattern || ')$')
        -- one more character before the match, for ^ and \b
        ELSE regexp_matches(substring(text, stop - 100, 101), '(?s:.)(' || pattern || ')$')
    END
ORDER BY sequence, position;

-- name: search
-- Tokens in which the text `wanted` ends, character for character, with the text around; the token is in [[ ]].
-- example: SELECT sequence, position, text FROM search($pattern) LIMIT 3
CREATE OR REPLACE MACRO search(wanted) AS TABLE
WITH
found AS (
    SELECT sequence, position, document, text, stop
    FROM tokens_in_text(regexp_escape(wanted))
    WHERE wanted <> ''
),

texts AS (
    SELECT sequence, any_value(text) AS text
    FROM found
    GROUP BY sequence
),

places AS (
    SELECT
        sequence,
        unnest(
            list_transform(
                range(1, len(pieces)),
                lambda n: length(array_to_string(pieces[1:n], '')) + n * length(wanted)
            )
        ) AS place
    FROM (
        SELECT sequence, string_split(text, wanted) AS pieces
        FROM texts
    )
),

hits AS (
    SELECT DISTINCT places.sequence, min(position) AS position, arg_min(document, position) AS document
    FROM places
    JOIN found ON found.sequence = places.sequence AND found.stop >= places.place
    GROUP BY places.sequence, places.place
)

SELECT
    hits.sequence,
    hits.position,
    hits.document,
    marked_text(list(around.token ORDER BY around.position), hits.position - min(around.position)) AS text
FROM hits
JOIN token AS around
    ON around.sequence = hits.sequence
    AND around.position BETWEEN hits.position - 24 AND hits.position + 8
GROUP BY hits.sequence, hits.position, hits.document
ORDER BY hits.sequence, hits.position;

-- name: circuit_edges
-- Edges of a trace's pruned graph, largest effect first. They include the effects that were measured by ablation.
-- example: SELECT source, target, effect, effect_frozen, effect_free FROM circuit_edges($trace) LIMIT 5
CREATE OR REPLACE MACRO circuit_edges(of_trace) AS TABLE
WITH named AS (
    SELECT node, node_label(kind, layer, feature, head, token, position) AS label
    FROM node
    WHERE trace = of_trace
)

SELECT
    source.label AS source,
    target.label AS target,
    edge.effect,
    edge.effect_frozen,
    edge.effect_free,
    edge.source AS source_node,
    edge.target AS target_node
FROM edge
JOIN named AS source ON source.node = edge.source
JOIN named AS target ON target.node = edge.target
WHERE edge.trace = of_trace
ORDER BY abs(edge.effect) DESC, source_node, target_node;

-- name: circuit_nodes
-- Nodes of a trace's pruned graph, most influential first, with the share of all influence down to each row.
-- example: SELECT label, influence, cumulative, value FROM circuit_nodes($trace) LIMIT 5
CREATE OR REPLACE MACRO circuit_nodes(of_trace) AS TABLE
SELECT
    node,
    node_label(kind, layer, feature, head, token, position) AS label,
    kind,
    is_root,
    run,
    layer,
    feature,
    position,
    token,
    activation,
    value,
    influence,
    -- share of all influence held by this node and the nodes before it
    sum(influence) OVER (ORDER BY influence DESC, node) / sum(influence) OVER () AS cumulative,
    probability,
    remainder
FROM node
WHERE trace = of_trace AND in_graph
ORDER BY influence DESC, node;

-- name: circuit_paths
-- Paths of a trace that a greedy search found, largest contribution first. Each one leads from its source to the root.
-- example: SELECT path, effect FROM circuit_paths($trace) LIMIT 5
CREATE OR REPLACE MACRO circuit_paths(of_trace) AS TABLE
SELECT
    string_agg(
        node_label(node.kind, node.layer, node.feature, node.head, node.token, node.position),
        ' > '
        ORDER BY path.step DESC
    ) AS path,
    arg_max(path.effect, path.step) AS effect,
    any_value(path.n_steps) AS n_steps,
    path.path AS number
FROM path
JOIN node ON node.trace = path.trace AND node.node = path.node
WHERE path.trace = of_trace
GROUP BY path.path
ORDER BY abs(arg_max(path.effect, path.step)) DESC, number;

-- name: smallest_subgraph
-- Features of the smallest subgraph that keeps the asked share of a trace's target, most important first.
-- example: SELECT method, rank, label FROM smallest_subgraph($trace) LIMIT 5
CREATE OR REPLACE MACRO smallest_subgraph(of_trace) AS TABLE
WITH best AS (
    SELECT method
    FROM subgraph
    WHERE trace = of_trace AND n_units > 0
    ORDER BY n_units, n_features, method
    LIMIT 1
)

SELECT
    method,
    rank,
    node_label('feature', layer, feature, NULL, token, position) AS label,
    layer,
    feature,
    position,
    token,
    activation,
    unit,
    node
FROM subgraph_node
SEMI JOIN best USING (method)
WHERE trace = of_trace
ORDER BY rank;

-- name: common_circuit
-- Nodes that the graphs of the prompts of a case study or behaviour have in common, per template, most influential first.
-- example: SELECT template, label, share, influence FROM common_circuit($case_study) LIMIT 5
CREATE OR REPLACE MACRO common_circuit(of_case) AS TABLE
SELECT
    template,
    CASE WHEN kind = 'root' THEN 'root' ELSE node_label(kind, layer, feature, NULL, token, role) END AS label,
    kind,
    run,
    layer,
    feature,
    role,
    token,
    share,
    influence,
    activation,
    node
FROM aggregate_node
WHERE behaviour = of_case AND is_common
ORDER BY template, influence DESC, node;

-- name: coactivation
-- Features of the same run, in any layer, that share tokens with a feature. The largest overlap comes first.
-- example: SELECT layer, feature, n_both, overlap, lift FROM coactivation($run, $layer, $feature) LIMIT 5
CREATE OR REPLACE MACRO coactivation(of_run, of_layer, of_feature) AS TABLE
WITH
mine AS (
    SELECT sequence, position
    FROM activation
    WHERE run = of_run AND layer = of_layer AND feature = of_feature
),

firing AS (
    SELECT layer, unnest(unpacked(packed, n_features)) AS feature
    FROM code
    SEMI JOIN mine USING (sequence, position)
    WHERE run = of_run
),

together AS (
    SELECT layer, feature, count(*) AS n_both
    FROM firing
    GROUP BY ALL
)

SELECT
    together.layer,
    together.feature,
    n_both,
    -- share of the tokens on which at least one of the two fires
    n_both / (this.n_tokens + other.n_tokens - n_both) AS overlap,
    -- share of this feature's tokens on which the other fires, and the reverse
    n_both / this.n_tokens AS share_of_this,
    n_both / other.n_tokens AS share_of_other,
    -- how many times more often both fire than if they were independent
    share_of_this / other.density AS lift
FROM together
JOIN feature AS other ON other.run = of_run AND other.layer = together.layer AND other.feature = together.feature
JOIN feature AS this ON this.run = of_run AND this.layer = of_layer AND this.feature = of_feature
WHERE NOT (together.layer = of_layer AND together.feature = of_feature)
ORDER BY overlap DESC, together.layer, together.feature;

-- name: compare_runs
-- Every metric of two runs side by side, for each layer. Layer -1 means that all layers were replaced at once.
-- example: FROM compare_runs($run, $other_run) WHERE metric = 'fvu'
CREATE OR REPLACE MACRO compare_runs(one_run, other_run) AS TABLE
WITH long AS (
    UNPIVOT (SELECT * FROM metric WHERE run IN (one_run, other_run))
    ON COLUMNS(* EXCLUDE (run, layer)) INTO NAME metric VALUE value
)

SELECT
    one.layer,
    one.metric,
    one.value AS one,
    other.value AS other,
    one.value - other.value AS difference
FROM long AS one
JOIN long AS other ON one.layer = other.layer AND one.metric = other.metric
WHERE one.run = one_run AND other.run = other_run
ORDER BY one.layer, one.metric;

-- name: feature_card
-- Statistics, logit effects, concepts and examples of a feature, with one row per fact.
-- example: FROM feature_card($run, $layer, $feature)
CREATE OR REPLACE MACRO feature_card(of_run, of_layer, of_feature) AS TABLE
WITH
facts AS (
    UNPIVOT (
        SELECT
            format('{:.4g}', density) AS density,
            n_tokens::VARCHAR AS n_tokens,
            format('{:.4g}', max_activation) AS max_activation,
            format('{:.4g}', mean_activation) AS mean_activation,
            format('{:.4g}', decoder_norm) AS decoder_norm,
            format('{:.4g}', encoder_norm) AS encoder_norm,
            format('{:.4g}', bias) AS bias
        FROM feature
        WHERE run = of_run AND layer = of_layer AND feature = of_feature
    )
    ON * INTO NAME what VALUE value
),

effects AS (
    SELECT
        CASE sign WHEN 1 THEN 'raises' ELSE 'lowers' END AS what,
        string_agg(format('{} ({:+.3f})', token, effect), ', ' ORDER BY rank) AS value
    FROM logit
    WHERE run = of_run AND layer = of_layer AND feature = of_feature
    GROUP BY sign
),

concepts AS (
    SELECT 'concepts' AS what, string_agg(format('{} (F1 {:.3f})', concept, f1), ', ' ORDER BY f1 DESC, concept) AS value
    FROM feature_concept
    WHERE run = of_run AND layer = of_layer AND feature = of_feature AND f1 > 0
    HAVING count(*) > 0
),

examples AS (
    SELECT
        CASE band WHEN 0 THEN 'largest ' || rank ELSE 'band ' || band END AS what,
        format('{:8.3f}  {}', activation, marked_text(tokens, position - window_start)) AS value,
        band,
        rank
    FROM example
    WHERE run = of_run AND layer = of_layer AND feature = of_feature AND rank < CASE band WHEN 0 THEN 8 ELSE 1 END
)

SELECT what, value
FROM (
    SELECT
        1 AS part,
        list_position(
            ['density', 'n_tokens', 'max_activation', 'mean_activation', 'decoder_norm', 'encoder_norm', 'bias'], what
        ) AS place,
        what,
        value
    FROM facts
    UNION ALL
    SELECT 2, CASE what WHEN 'raises' THEN 0 ELSE 1 END, what, value FROM effects
    UNION ALL
    SELECT 3, 0, what, value FROM concepts
    UNION ALL
    -- the largest first, then the bands downwards
    SELECT 4, CASE band WHEN 0 THEN rank ELSE 1000 - band END, what, value FROM examples
)
ORDER BY part, place;

-- name: features_of_concept
-- Features of all runs and layers that detect a concept, highest F1 on held-out documents first.
-- example: SELECT run, layer, feature, threshold, precision, recall, f1 FROM features_of_concept($concept) LIMIT 5
CREATE OR REPLACE MACRO features_of_concept(of_concept) AS TABLE
SELECT
    scored.run,
    scored.layer,
    scored.feature,
    scored.sign,
    scored.threshold,
    scored.precision,
    scored.recall,
    scored.f1,
    feature.density,
    feature.max_activation
FROM feature_concept AS scored
LEFT JOIN feature
    ON feature.run = scored.run AND feature.layer = scored.layer AND feature.feature = scored.feature
WHERE scored.concept = of_concept
ORDER BY scored.f1 DESC NULLS LAST, scored.run, scored.layer, scored.feature;

-- name: features_on
-- Features that fire on tokens at which a match of a regular expression ends, highest F1 first. Without such tokens, the pattern is searched as text.
-- example: SELECT run, layer, feature, f1 FROM features_on($pattern) LIMIT 5
CREATE OR REPLACE MACRO features_on(pattern) AS TABLE
WITH
ending AS (
    SELECT sequence, position
    FROM tokens_matching(pattern)
),

wanted AS (
    SELECT sequence, position
    FROM (
        FROM ending
        UNION ALL
        SELECT sequence, position FROM search(pattern) WHERE NOT EXISTS (FROM ending)
    )
    -- `features.tokens` may leave the last sequences out
    WHERE sequence <= (SELECT max(sequence) FROM code)
),

firing AS (
    SELECT code.run, code.layer, unnest(unpacked(packed, n_features)) AS feature
    FROM code
    SEMI JOIN wanted USING (sequence, position)
),

hits AS (
    SELECT run, layer, feature, count(*) AS n_hits
    FROM firing
    GROUP BY ALL
)

SELECT
    hits.run,
    hits.layer,
    hits.feature,
    n_hits,
    n_hits / feature.n_tokens AS precision,
    n_hits / (SELECT count(*) FROM wanted) AS recall,
    2 * n_hits / (feature.n_tokens + (SELECT count(*) FROM wanted)) AS f1
FROM hits
JOIN feature ON feature.run = hits.run AND feature.layer = hits.layer AND feature.feature = hits.feature
ORDER BY f1 DESC, hits.run, hits.layer, hits.feature;

-- name: labels
-- The best label of each feature of a run and layer by F1, with its scores. NULL for run or layer means all.
-- example: SELECT feature, label, f1 FROM labels($run, $layer) ORDER BY f1 DESC, feature LIMIT 5
CREATE OR REPLACE MACRO labels(of_run, of_layer) AS TABLE
SELECT
    -- what a reader wants first
    label.run,
    label.layer,
    label.feature,
    label.label,
    label.f1,
    label.f1_low,
    label.f1_high,
    label.promoted,
    label.* EXCLUDE (run, layer, feature, label, f1, f1_low, f1_high, promoted) REPLACE (
        coalesce(label.output, said.output) AS output,
        coalesce(label.output_low, said.output_low) AS output_low,
        coalesce(label.output_high, said.output_high) AS output_high
    )
FROM label
LEFT JOIN label_output AS said
    ON said.run = label.run AND said.layer = label.layer AND said.feature = label.feature AND label.source = 'rule'
WHERE
    (of_run IS NULL OR label.run = of_run)
    AND (of_layer IS NULL OR label.layer = of_layer)
    -- these are only for comparison
    AND label.source NOT IN ('frequent', 'planted')
QUALIFY row_number() OVER (PARTITION BY label.run, label.layer, label.feature ORDER BY label.f1 DESC NULLS LAST, label.source) = 1
ORDER BY label.run, label.layer, label.feature;

-- name: search_labels
-- Features whose label contains a text, upper or lower case, the best described first.
-- example: SELECT run, layer, feature, label, f1 FROM search_labels('after') LIMIT 5
CREATE OR REPLACE MACRO search_labels(wanted) AS TABLE
SELECT run, layer, feature, label, source, f1, precision, recall
FROM labels(NULL, NULL)
WHERE contains(lower(label), lower(wanted))
ORDER BY f1 DESC NULLS LAST, run, layer, feature;

-- name: marked_text
-- Joins tokens into one text and puts the token at `place`, counted from 0, in [[ ]]. Bytes become characters.
-- example: SELECT marked_text(['the', 'war', 'lasted'], 1) AS text
CREATE OR REPLACE MACRO marked_text(tokens, place) AS
-- whole_text moves the marks out of a character that several tokens make up
replace(
    replace(
        whole_text(
            array_to_string(
                list_transform(
                    tokens,
                    lambda t, i: CASE WHEN i = place + 1 THEN concat(chr(64976), t, chr(64977)) ELSE t END
                ),
                spacing()
            )
        ),
        chr(64976),
        '[['
    ),
    chr(64977),
    ']]'
);

-- name: node_label
-- Short text that names a node of a circuit.
-- example: SELECT node_label('feature', 3, 235, NULL, 'caught', 4)
CREATE OR REPLACE MACRO node_label(kind, layer, feature, head, token, position) AS
CASE kind
    WHEN 'feature' THEN concat(layer, '/', feature, ' ''', token, '''@', position)
    WHEN 'head' THEN concat('head ', layer, '.', head, ' from ''', token, '''@', position)
    WHEN 'error' THEN concat('error ', layer, ' ''', token, '''@', position)
    WHEN 'constant' THEN 'constant'
    ELSE concat(kind, ' ''', token, '''@', position)
END;

-- name: similar_features
-- Features of all runs and layers whose activations over all tokens are most similar to a feature's, by cosine.
-- example: SELECT run, layer, feature, cosine FROM similar_features($run, $layer, $feature) LIMIT 5
CREATE OR REPLACE MACRO similar_features(of_run, of_layer, of_feature) AS TABLE
WITH
mine AS (
    SELECT sequence, position, activation
    FROM activation
    WHERE run = of_run AND layer = of_layer AND feature = of_feature
),

products AS (
    SELECT other.run, other.layer, other.feature, sum(other.activation * mine.activation) AS product, count(*) AS n_both
    FROM activation AS other
    JOIN mine USING (sequence, position)
    GROUP BY ALL
)

SELECT
    products.run,
    products.layer,
    products.feature,
    product / (this.rms_activation * sqrt(this.n_tokens) * other.rms_activation * sqrt(other.n_tokens)) AS cosine,
    n_both,
    other.n_tokens
FROM products
JOIN feature AS other
    ON other.run = products.run AND other.layer = products.layer AND other.feature = products.feature
JOIN feature AS this ON this.run = of_run AND this.layer = of_layer AND this.feature = of_feature
WHERE NOT (products.run = of_run AND products.layer = of_layer AND products.feature = of_feature)
ORDER BY cosine DESC, products.run, products.layer, products.feature;

-- name: supernodes
-- Groups of the 300 most influential features of a trace that fire at one position and have equal labels, or activations over all tokens with at least this cosine.
-- example: SELECT name, layer, feature, influence FROM supernodes($trace, 0.7) LIMIT 5
CREATE OR REPLACE MACRO supernodes(of_trace, least_cosine) AS TABLE
WITH RECURSIVE
-- a root is what the graph explains, so it stays alone
candidates AS (
    SELECT node.node, node.layer, node.feature, node.position, node.influence, best.label
    FROM node
    LEFT JOIN labels((SELECT run FROM trace WHERE trace = of_trace), NULL) AS best
        ON best.run = node.run AND best.layer = node.layer AND best.feature = node.feature AND best.kind <> 'none'
    WHERE node.trace = of_trace AND node.kind = 'feature' AND node.in_graph AND NOT node.is_root
    -- the time grows with the square of their number: 1000 features of Gemma 3 270M take half a minute, 300 some seconds
    QUALIFY row_number() OVER (ORDER BY node.influence DESC, node.node) <= 300
),

firing AS (
    SELECT candidates.node, candidates.position AS place, activation.sequence, activation.position, activation.activation
    FROM activation
    JOIN candidates ON candidates.layer = activation.layer AND candidates.feature = activation.feature
    WHERE activation.run = (SELECT run FROM trace WHERE trace = of_trace)
),

norms AS (
    SELECT node, sqrt(sum(activation * activation)) AS norm
    FROM firing
    GROUP BY node
),

products AS (
    SELECT one.node AS one, other.node AS other, sum(one.activation * other.activation) AS product
    FROM firing AS one
    JOIN firing AS other
        ON one.place = other.place
        AND one.sequence = other.sequence
        AND one.position = other.position
        AND one.node < other.node
    GROUP BY ALL
),

pairs AS (
    SELECT one, other
    FROM products
    JOIN norms AS this ON this.node = one
    JOIN norms AS that ON that.node = other
    WHERE product >= least_cosine * this.norm * that.norm
    UNION
    SELECT this.node, that.node
    FROM candidates AS this
    JOIN candidates AS that
        ON that.label = this.label AND that.position = this.position AND this.node < that.node
),

agreeing AS (
    SELECT one AS node, other FROM pairs
    UNION ALL
    SELECT other, one FROM pairs
),

-- agreement is passed on: all nodes that a chain of pairs connects are one group
connected AS (
    SELECT node, other
    FROM agreeing
    UNION
    SELECT connected.node, agreeing.other
    FROM connected
    JOIN agreeing ON agreeing.node = connected.other
),

members AS (
    SELECT node, min(other) AS first
    FROM connected
    GROUP BY node
),

groups AS (
    SELECT
        members.first,
        sum(influence) AS influence,
        concat(
            arg_max(coalesce(label, concat(layer, '/', feature)), influence), ' @', any_value(position)
        ) AS name
    FROM members
    JOIN candidates USING (node)
    GROUP BY members.first
)

SELECT
    dense_rank() OVER (ORDER BY groups.influence DESC, first) AS supernode,
    name,
    node,
    layer,
    feature,
    position,
    label,
    candidates.influence
FROM members
JOIN groups USING (first)
JOIN candidates USING (node)
ORDER BY supernode, candidates.influence DESC, node;

-- name: top_examples
-- The largest activations of a feature in context. The token on which it fires is in [[ ]].
-- example: SELECT rank, activation, text FROM top_examples($run, $layer, $feature)
CREATE OR REPLACE MACRO top_examples(of_run, of_layer, of_feature) AS TABLE
SELECT
    rank,
    activation,
    sequence,
    position,
    marked_text(tokens, position - window_start) AS text,
    tokens,
    activations
FROM example
WHERE run = of_run AND layer = of_layer AND feature = of_feature AND band = 0
ORDER BY rank;

-- name: unpacked
-- Unpacks the `n` features of a row of `code`, which are stored as integers of equal size.
-- example: SELECT unpacked('\x00\x07\x01\x00'::BLOB, 2) AS features
CREATE OR REPLACE MACRO unpacked(packed, n) AS
list_transform(
    range(n::BIGINT),
    lambda i: (
        '0x' || substring(
            hex(packed),
            (2 * i * octet_length(packed) // n + 1)::BIGINT,
            (2 * octet_length(packed) // n)::BIGINT
        )
    )::INTEGER
);

-- name: why_attended
-- Why a head reads one position from another: pairs of sources, then single sources. NULL stands for any value.
-- example: SELECT head_edge, kind, query_source, key_source, effect FROM why_attended($trace, NULL, NULL, NULL, NULL) LIMIT 5
CREATE OR REPLACE MACRO why_attended(of_trace, of_layer, of_head, of_query, of_key) AS TABLE
SELECT
    layer || '.' || head || ' at ' || query || ' reads ' || key AS head_edge,
    kind,
    query_source,
    key_source,
    effect,
    relative_effect,
    effect_frozen,
    effect_free,
    pattern_free,
    root_free,
    score,
    mean_score,
    pattern,
    contribution,
    layer,
    head,
    query,
    key,
    rank
FROM attention_score
WHERE trace = of_trace
    AND (of_layer IS NULL OR layer = of_layer)
    AND (of_head IS NULL OR head = of_head)
    AND (of_query IS NULL OR query = of_query)
    AND (of_key IS NULL OR key = of_key)
ORDER BY
    abs(contribution) DESC,
    layer,
    head,
    query,
    key,
    CASE kind WHEN 'pair' THEN 0 WHEN 'query' THEN 1 ELSE 2 END,
    rank;
