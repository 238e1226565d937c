"""training/logging"""
