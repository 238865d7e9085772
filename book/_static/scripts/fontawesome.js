// Stands in for the theme's script of this name (1.5 MB), which draws the icons that the theme's style sheet draws already.
