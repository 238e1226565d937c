"""evaluation/metrics"""
