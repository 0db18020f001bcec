"""What renders a lesion besides `texture`: networks, weight files with their cards, and the choice among them."""
