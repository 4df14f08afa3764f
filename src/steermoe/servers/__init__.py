"""Asking servers: when to ask again, what their errors mean, many questions at once."""
