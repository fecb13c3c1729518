"""What the world does to a picture after it was made: codecs, blur, noise, size, crops, screenshots. Knows PIL images; knows no detector."""
