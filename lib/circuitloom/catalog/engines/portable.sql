-- name: top_examples
-- The largest activations of a feature in context. The token on which it fires is in [[ ]].
-- parameters: of_run text, of_layer integer, of_feature integer
-- tables: example
-- order: rank
SELECT
    rank,
    activation,
    sequence,
    position,
    {{ sql.marked("tokens", "position - window_start") }} AS text,
    tokens,
    activations
FROM example
WHERE run = $of_run AND layer = $of_layer AND feature = $of_feature AND band = 0

-- name: coactivation
-- Features of the same run, in any layer, that share tokens with a feature.
-- parameters: of_run text, of_layer integer, of_feature integer
-- tables: activation code feature
-- order: overlap DESC, layer, feature
WITH
mine AS (
    SELECT sequence, position
    FROM activation
    WHERE run = $of_run AND layer = $of_layer AND feature = $of_feature
),

firing AS (
    {{ sql.firing_on_mine() | indent(4) }}
),

together AS (
    SELECT layer, feature, count(*) AS n_both
    FROM firing
    GROUP BY layer, feature
)

SELECT
    together.layer AS layer,
    together.feature AS feature,
    together.n_both AS n_both,
    CAST(together.n_both AS DOUBLE) / (this.n_this + other.n_other - together.n_both) AS overlap,
    CAST(together.n_both AS DOUBLE) / this.n_this AS share_of_this,
    CAST(together.n_both AS DOUBLE) / other.n_other AS share_of_other,
    CAST(together.n_both AS DOUBLE) / this.n_this / other.density AS lift
FROM together
JOIN (
    SELECT layer, feature, n_tokens AS n_other, density
    FROM feature
    WHERE run = $of_run
) AS other ON other.layer = together.layer AND other.feature = together.feature
CROSS JOIN (
    SELECT n_tokens AS n_this
    FROM feature
    WHERE run = $of_run AND layer = $of_layer AND feature = $of_feature
) AS this
WHERE NOT (together.layer = $of_layer AND together.feature = $of_feature)

-- name: firing_rates
-- How often each feature of a layer fires: its tokens, counted in `activation`, and its density, from `feature`.
-- parameters: of_run text, of_layer integer
-- tables: activation feature
-- order: feature
WITH counted AS (
    SELECT feature, count(*) AS n_counted
    FROM activation
    WHERE run = $of_run AND layer = $of_layer
    GROUP BY feature
)

SELECT known.number AS feature, coalesce(counted.n_counted, 0) AS n_tokens, known.density AS density
FROM (
    SELECT feature AS number, density
    FROM feature
    WHERE run = $of_run AND layer = $of_layer
) AS known
LEFT JOIN counted ON counted.feature = known.number

-- name: search
-- Tokens in which the text `wanted` ends, character for character, with the text around; the token is in [[ ]].
-- parameters: wanted text
-- tables: token
-- order: sequence, position
WITH
joined_tokens AS (
    SELECT sequence, {{ sql.joined("token", "position") }} AS joined
    FROM token
    GROUP BY sequence
),

matching AS (
    SELECT sequence, joined
    FROM joined_tokens
    WHERE $wanted <> '' AND {{ sql.contains("joined", "$wanted") }}
),

-- the joined tokens up to a token, its space included, have `stop` characters
ending AS (
    SELECT
        sequence,
        position,
        document,
        {{ sql.length("token") }} + {{ spacing | length }} AS n_letters,
        CAST(
            sum({{ sql.length("token") }} + {{ spacing | length }}) OVER (PARTITION BY sequence ORDER BY position)
            AS BIGINT
        ) - {{ spacing | length }} AS stop
    FROM token
),

-- a match ends in a token if it lies in the characters that the token's own and the match's length before them cover
spans AS (
    SELECT
        ending.sequence AS sequence,
        ending.position AS position,
        ending.document AS document,
        matching.joined AS joined,
        ending.stop AS stop,
        CASE
            WHEN ending.stop - ending.n_letters - {{ sql.length("$wanted") }} + 2 < 1 THEN 1
            ELSE ending.stop - ending.n_letters - {{ sql.length("$wanted") }} + 2
        END AS start
    FROM ending
    JOIN matching ON matching.sequence = ending.sequence
),

hits AS (
    SELECT sequence, position, document
    FROM spans
    WHERE {{ sql.contains(sql.substring("joined", "start", "stop - start + 1"), "$wanted") }}
),

around AS (
    SELECT
        hits.sequence AS sequence,
        hits.position AS position,
        hits.document AS document,
        token.position AS place,
        CASE
            WHEN token.position = hits.position THEN {{ sql.in_marks("token.token") }}
            ELSE token.token
        END AS word
    FROM hits
    JOIN token ON token.sequence = hits.sequence
    WHERE token.position >= hits.position - 24 AND token.position <= hits.position + 8
)

SELECT sequence, position, document, {{ sql.shown(sql.joined("word", "place")) }} AS text
FROM around
GROUP BY sequence, position, document
