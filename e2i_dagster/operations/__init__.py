"""What the people do who run the product: back it up, restore it, hand it over, erase a patient."""
