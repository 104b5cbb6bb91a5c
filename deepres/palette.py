"""Colours of plots, distinguishable by colour-blind readers (Okabe and Ito 2008)."""

BLUE, ORANGE, GREEN, SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
VERMILION, PURPLE, GREY, BLACK = "#D55E00", "#CC79A7", "#666666", "#000000"
