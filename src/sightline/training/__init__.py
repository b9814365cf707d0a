"""What the trainings share: parameters, order of the data, precision, resuming."""
