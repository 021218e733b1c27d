//! What the Integration Server hears.
