"""What a person looks at: heat maps, figures, the table and the page of scored photographs."""
