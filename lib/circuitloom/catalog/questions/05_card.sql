-- What is known of one feature altogether?
FROM feature_card({run}, {layer}, {feature})
