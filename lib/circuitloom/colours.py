"""Colours of all pictures: those of Okabe and Ito (2008), which tell apart under every kind of colour blindness."""

BLUE, VERMILION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
RAISES, LOWERS = BLUE, VERMILION
"""Effects above 0, and below."""
