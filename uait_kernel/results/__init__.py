"""What UAIT's operations return: plain, frozen objects that know how to show themselves."""
