"""What XLA has to be told: convolutions and products that it does badly, compiler settings, many devices."""
