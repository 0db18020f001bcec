"""What draws a lesion beside `texture`: networks, weight files with their cards, and the choice among them."""
