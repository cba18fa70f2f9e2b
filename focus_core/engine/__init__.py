"""Text in, text out: questions, their options and answers, and the scheduler that runs them."""
