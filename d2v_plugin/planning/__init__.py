"""What a recipe needs: its batch in the units of its data, its memory counted tensor by tensor, and the hours."""
