"""Dense conditional random field: mean field on a lattice, exact, or by pydensecrf."""
