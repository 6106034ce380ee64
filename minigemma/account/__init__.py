"""What a Gemma 4 stores, keeps in memory and multiplies, exact to the unit."""
