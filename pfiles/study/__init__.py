"""A reader study: a page for each reader, a key that stays apart, and what the answers say."""
