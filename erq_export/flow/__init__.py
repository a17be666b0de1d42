"""What stands above the rooms: stages, the store that keeps what they made, and the runs that call them."""
