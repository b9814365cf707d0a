"""Pages to look at and cards of models, made from the files that DVC tracks. Imports no other branch."""
