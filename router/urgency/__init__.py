"""Find red flags: signs in a question that call for emergency services, by curated rules."""
