"""The networks of the detector families, a module each with `build(card)`, imported when a card needs it."""
